"""Tags of runs and of versions that say where a version comes from."""

RECALIBRATED_FROM = "dfm.recalibrated_from"
PARENT = "dfm.parent_version"  # what was updated
UPDATE = "dfm.update."  # how further ones of an update begin
LINEAGE = (RECALIBRATED_FROM, PARENT, UPDATE)
