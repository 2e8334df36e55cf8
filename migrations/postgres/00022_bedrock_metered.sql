-- Log records whose calls are in the ledger by the metering proxy, of which no event
-- was made.

-- +goose Up
alter table connection.bedrock add column metered bigint not null default 0 check (metered >= 0);
grant update (metered) on connection.bedrock to tallystick_app;

-- +goose Down
alter table connection.bedrock drop column metered;
