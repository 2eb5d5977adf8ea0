"""What served models are measured with: times of batches, load by clients, and both on a GPU beside the bare runtime."""
