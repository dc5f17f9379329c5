"""The example applications: each folder is a whole program; none knows another, and Backsync knows none of them."""
