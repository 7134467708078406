"""How a served model is: metrics, a log, an alarm, and the version that it follows."""
