"""The job: settings, stages and the driver that runs them."""
