"""What a model is worth: bits per byte, reward calibration, judged samples, the report."""
