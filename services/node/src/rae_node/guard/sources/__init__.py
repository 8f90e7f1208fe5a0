"""One detector a file, one interface (`base.Source`)."""
