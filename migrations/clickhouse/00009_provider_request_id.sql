-- The provider's id of a call that the metering proxy metered and that the provider
-- logs as well, so that who reads those logs can tell the call; '' of everything else,
-- and of what was stored before this. Without an index: the table's own order leads to
-- the hours that are looked at, and of the column there is next to nothing there.
ALTER TABLE entry ADD COLUMN IF NOT EXISTS provider_request_id String;
