"""What `scripts/bench` runs: races against other runtimes, profiles, single layers; tables and charts of them."""
