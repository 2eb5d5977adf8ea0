"""What runs inside the server for the flavor `python`: ragged requests become batches, and each bad one gets an error of its own."""
