"""Doctor, report, dry run and the test of the detectors."""
