"""The processes: gunicorn, its worker, listeners, production and development."""
