"""Bundle -> a file that runs -> answers and milliseconds."""
