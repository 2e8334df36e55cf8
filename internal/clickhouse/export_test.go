package clickhouse

// WithoutFastPath is db inserting by clickhouse-go's batches, as it does where a
// server is reached by the native protocol.
func (db *DB) WithoutFastPath() *DB { return &DB{Conn: db.Conn, role: db.role} }
