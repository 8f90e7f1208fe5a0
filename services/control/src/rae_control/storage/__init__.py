"""Files of artifacts and logs."""
