"""What all read and write: safe files, weights, the dataset JSON, labels. The ground floor of the project."""
