"""Everything that only a GPU can show, in one command of minutes: `python -m regard.benchmarks.gpu`."""
