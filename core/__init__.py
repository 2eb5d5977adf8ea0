"""What every stage stands on: errors, artifacts, records, recipes, progress, the TensorRT bindings."""
