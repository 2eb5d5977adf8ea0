"""What every stage stands on: errors, artefacts, records, recipes, progress, the TensorRT bindings."""
