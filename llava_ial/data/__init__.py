"""Reading data sets, photos and batches."""
