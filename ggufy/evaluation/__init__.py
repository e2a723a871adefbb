"""`ggufy eval`: which models, on what, measured once each and put into a report. What is measured: `ggufy.evaluate`."""
