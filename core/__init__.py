"""What every stage uses: errors, artifacts, records, recipes, progress."""
