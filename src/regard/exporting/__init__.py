"""A trained model as one file that runs without Regard: ONNX, torch.export, OpenVINO."""
