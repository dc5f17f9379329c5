"""The servers that are measured, each as idiomatic for its library as can be; run by the benchmarks' own Python."""
