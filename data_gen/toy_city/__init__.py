"""An invented town with a street map and rendered street photos, a city like any other for the data pipeline."""

GENERATOR_VERSION = "1"
