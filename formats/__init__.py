"""The ground floor: safe files, dataset JSON, HDF5, MAT, labels, weights, codes, their ranking, processor."""
