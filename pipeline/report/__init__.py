"""Stage 5: everything that was found about a study, as one page of HTML."""
