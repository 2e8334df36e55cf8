-- The engine knows a view whose query was changed (00005) by another name until
-- it is loaded anew, and the deduplication token of what the view inserts has
-- that name in it: a plan that was under way when the engine died was in the
-- view's target twice. Both statements may be run again, also after a kill
-- between them. Nothing may insert meanwhile: the processors begin after this.
DETACH TABLE IF EXISTS usage_hour_view SYNC;

ATTACH TABLE IF NOT EXISTS usage_hour_view;
