"""Trainings: started on one or many processes, their folders, their logs."""
