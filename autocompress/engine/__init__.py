"""The search: settings, checks, the driver that asks and tells, the run folder, and what comes of it."""
