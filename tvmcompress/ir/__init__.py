"""What this project needs of Relax and TIR, in its own words. TVM's churn stops here."""
