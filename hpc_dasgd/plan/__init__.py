"""What a run would do, before node hours are spent."""
