"""The report of a run: `report.html`, made from the run's files alone."""
