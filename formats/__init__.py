"""The ground floor: safe files, dataset JSON, HDF5, MAT, labels, weights, codes as bytes, the processor."""
