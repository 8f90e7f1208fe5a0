"""The GPU source before a real GPU: `make test-gpu`."""
