package clickhouse_test

import (
	"context"
	"net"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	"github.com/tallystick/tallystick/internal/clickhouse"
)

const typesTable = `CREATE TABLE types (
	n UInt64, s String, lc LowCardinality(String), u8 UInt8, u16 UInt16, u32 UInt32, i64 Int64,
	dt DateTime, dtz DateTime('Europe/Berlin'), d6 DateTime64(6), d9 DateTime64(9, 'UTC'), dec Decimal(38, 12),
	fs FixedString(32), id UUID, m Map(String, String), a Array(String), b Bool,
	e Enum8('usage' = 1, 'correction' = 2), ns Nullable(String), ni Nullable(Int64), nd Nullable(DateTime64(6)),
	ndec Nullable(Decimal(38, 12)), lcn LowCardinality(Nullable(String)), day Date
) ENGINE = MergeTree ORDER BY n`

// typesRow is one row as clickhouse-go reads it.
type typesRow struct {
	N    uint64            `ch:"n"`
	S    string            `ch:"s"`
	LC   string            `ch:"lc"`
	U8   uint8             `ch:"u8"`
	U16  uint16            `ch:"u16"`
	U32  uint32            `ch:"u32"`
	I64  int64             `ch:"i64"`
	DT   time.Time         `ch:"dt"`
	DTZ  time.Time         `ch:"dtz"`
	D6   time.Time         `ch:"d6"`
	D9   time.Time         `ch:"d9"`
	Dec  decimal.Decimal   `ch:"dec"`
	FS   string            `ch:"fs"`
	ID   uuid.UUID         `ch:"id"`
	M    map[string]string `ch:"m"`
	A    []string          `ch:"a"`
	B    bool              `ch:"b"`
	E    string            `ch:"e"`
	NS   *string           `ch:"ns"`
	NI   *int64            `ch:"ni"`
	ND   *time.Time        `ch:"nd"`
	NDec *decimal.Decimal  `ch:"ndec"`
	LCN  *string           `ch:"lcn"`
	Day  time.Time         `ch:"day"`
}

func ptr[T any](v T) *T { return &v }

// typesRows are a row of ordinary values, one of extremes and one of nothing.
func typesRows() []typesRow {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		panic(err)
	}
	at := time.Date(2026, 3, 29, 1, 30, 0, 123456789, time.UTC)
	return []typesRow{
		{
			N: 1, S: "naïve \x00 'quoted' \\ \U0001F9FE", LC: "gpt", U8: 255, U16: 65535, U32: 1<<32 - 1, I64: -1 << 63,
			DT: at.Truncate(time.Second), DTZ: at.Truncate(time.Second).In(berlin), D6: at.Truncate(time.Microsecond), D9: at,
			Dec: decimal.RequireFromString("-12345678901234567890123456.123456789012"), FS: strings.Repeat("x", 31) + "\xff",
			ID: uuid.MustParse("018f3c1e-7d2a-7b1c-9f00-0123456789ab"), M: map[string]string{"team": "a", "": "empty key"},
			A: []string{"one", "", "three"}, B: true, E: "correction", NS: ptr(""), NI: ptr(int64(-7)), ND: ptr(at.Truncate(time.Microsecond)),
			NDec: ptr(decimal.RequireFromString("0.000000000001")), LCN: ptr("set"), Day: time.Date(2026, 3, 29, 0, 0, 0, 0, time.UTC),
		},
		{
			N: 1<<64 - 1, S: strings.Repeat("long ", 50_000), LC: "", I64: 1<<63 - 1,
			DT: time.Unix(1<<32-1, 0).UTC(), DTZ: time.Unix(0, 0).In(berlin), D6: time.Unix(0, 0).UTC(), D9: time.Unix(0, 1).UTC(),
			Dec: decimal.RequireFromString("99999999999999999999999999.999999999999"), FS: strings.Repeat("\x00", 32),
			M: map[string]string{}, A: []string{}, E: "usage", Day: time.Unix(0, 0).UTC(),
		},
	}
}

// typesColumns is the same table in ch-go's columns.
func typesColumns(rows []typesRow) clickhouse.Block {
	var (
		n               = new(proto.ColUInt64)
		s, fs           = new(proto.ColStr), &proto.ColFixedStr{Size: 32}
		lc              = new(proto.ColStr).LowCardinality()
		u8              = new(proto.ColUInt8)
		u16             = new(proto.ColUInt16)
		u32             = new(proto.ColUInt32)
		i64             = new(proto.ColInt64)
		dt, dtz         = new(proto.ColDateTime), new(proto.ColDateTime)
		d6, d9          = new(proto.ColDateTime64).WithPrecision(6), new(proto.ColDateTime64).WithPrecision(9)
		dec             = new(proto.ColDecimal128)
		id              = new(proto.ColUUID)
		m               = proto.NewMap[string, string](new(proto.ColStr), new(proto.ColStr))
		a               = new(proto.ColStr).Array()
		b               = new(proto.ColBool)
		e               = new(proto.ColEnum8)
		ns              = new(proto.ColStr).Nullable()
		ni              = new(proto.ColInt64).Nullable()
		nd              = proto.NewColNullable[time.Time](new(proto.ColDateTime64).WithPrecision(6))
		ndec            = proto.NewColNullable[proto.Decimal128](new(proto.ColDecimal128))
		lcn             = new(proto.ColStr).Nullable()
		day             = new(proto.ColDate)
		decimal128      = func(d decimal.Decimal) proto.Decimal128 { return proto.Decimal128(int128(d)) }
		nullableTime    = func(v *time.Time) proto.Nullable[time.Time] { return nullable(v) }
		nullableDecimal = func(v *decimal.Decimal) proto.Nullable[proto.Decimal128] {
			if v == nil {
				return proto.Null[proto.Decimal128]()
			}
			return proto.NewNullable(decimal128(*v))
		}
	)
	for _, r := range rows {
		n.Append(r.N)
		s.Append(r.S)
		lc.Append(r.LC)
		u8.Append(r.U8)
		u16.Append(r.U16)
		u32.Append(r.U32)
		i64.Append(r.I64)
		dt.Append(r.DT)
		dtz.Append(r.DTZ)
		d6.Append(r.D6)
		d9.Append(r.D9)
		dec.Append(decimal128(r.Dec))
		fs.Append([]byte(r.FS))
		id.Append(r.ID)
		m.Append(r.M)
		a.Append(r.A)
		b.Append(r.B)
		e.Append(map[string]proto.Enum8{"usage": 1, "correction": 2}[r.E])
		ns.Append(nullable(r.NS))
		ni.Append(nullable(r.NI))
		nd.Append(nullableTime(r.ND))
		ndec.Append(nullableDecimal(r.NDec))
		lcn.Append(nullable(r.LCN))
		day.Append(r.Day)
	}
	return clickhouse.Block{
		{Name: "n", Data: n}, {Name: "s", Data: s}, {Name: "lc", Data: lc}, {Name: "u8", Data: u8}, {Name: "u16", Data: u16},
		{Name: "u32", Data: u32}, {Name: "i64", Data: i64}, {Name: "dt", Data: dt}, {Name: "dtz", Data: dtz}, {Name: "d6", Data: d6},
		{Name: "d9", Data: d9}, {Name: "dec", Data: proto.Alias(dec, "Decimal(38, 12)")}, {Name: "fs", Data: fs}, {Name: "id", Data: id},
		{Name: "m", Data: m}, {Name: "a", Data: a}, {Name: "b", Data: b}, {Name: "e", Data: proto.Alias(e, "Enum8('usage' = 1, 'correction' = 2)")},
		{Name: "ns", Data: ns}, {Name: "ni", Data: ni}, {Name: "nd", Data: nd},
		{Name: "ndec", Data: proto.Alias(ndec, "Nullable(Decimal(38, 12))")}, {Name: "lcn", Data: lcn}, {Name: "day", Data: day},
	}
}

func nullable[T any](v *T) proto.Nullable[T] {
	if v == nil {
		return proto.Null[T]()
	}
	return proto.NewNullable(*v)
}

// int128 is the value of a Decimal(38, 12) in two's complement.
func int128(d decimal.Decimal) proto.Int128 {
	v := d.Shift(12).BigInt()
	if v.Sign() < 0 {
		v.Add(v, new2pow128())
	}
	return int128FromBig(v)
}

func readTypes(t *testing.T, db driver.Conn) []typesRow {
	t.Helper()
	var rows []typesRow
	if err := db.Select(t.Context(), &rows, "SELECT * FROM types ORDER BY n"); err != nil {
		t.Fatal(err)
	}
	return rows
}

// compare reports each field of each row that differs.
func compare(t *testing.T, got, want []typesRow) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d rows, want %d", len(got), len(want))
	}
	for i := range want {
		g, w := reflect.ValueOf(got[i]), reflect.ValueOf(want[i])
		for f := range w.NumField() {
			if !sameValue(g.Field(f).Interface(), w.Field(f).Interface()) {
				t.Errorf("row %d, column %s: got %v, want %v", i, w.Type().Field(f).Tag.Get("ch"), g.Field(f).Interface(), w.Field(f).Interface())
			}
		}
	}
}

func sameValue(got, want any) bool {
	switch w := want.(type) {
	case time.Time:
		return got.(time.Time).Equal(w)
	case *time.Time:
		g := got.(*time.Time)
		return (g == nil) == (w == nil) && (w == nil || g.Equal(*w))
	case decimal.Decimal:
		return got.(decimal.Decimal).Equal(w)
	case *decimal.Decimal:
		g := got.(*decimal.Decimal)
		return (g == nil) == (w == nil) && (w == nil || g.Equal(*w))
	}
	return reflect.DeepEqual(got, want)
}

// clients are the ways in which a program may reach the engine.
func clients(t *testing.T, database string) map[string]driver.Conn {
	conns := map[string]driver.Conn{}
	for name, method := range map[string]ch.CompressionMethod{"none": ch.CompressionNone, "lz4": ch.CompressionLZ4, "zstd": ch.CompressionZSTD} {
		conn, err := ch.Open(&ch.Options{
			Protocol: ch.HTTP, Addr: []string{"localhost"}, Auth: ch.Auth{Database: database},
			Compression: &ch.Compression{Method: method},
			DialContext: func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socketPath(t))
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns[name] = conn
	}
	return conns
}

func socketPath(t *testing.T) string {
	u, err := url.Parse(engine.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	return u.Path
}

func TestTypesByInsert(t *testing.T) {
	for name, insert := range map[string]func(*clickhouse.DB) *clickhouse.DB{
		"one post":  func(db *clickhouse.DB) *clickhouse.DB { return db },
		"row batch": (*clickhouse.DB).WithoutFastPath,
	} {
		t.Run(name, func(t *testing.T) {
			database, db := newDatabase(t)
			mustExec(t, db, typesTable)
			if err := insert(db).Insert(t.Context(), database+".types", "", typesColumns(typesRows())); err != nil {
				t.Fatal(err)
			}
			compare(t, readTypes(t, open(t, database, clickhouse.Reader)), typesRows())
		})
	}
}

func TestTypesByCompression(t *testing.T) {
	database, db := newDatabase(t)
	mustExec(t, db, typesTable)
	for name, conn := range clients(t, database) {
		t.Run(name, func(t *testing.T) {
			mustExec(t, db, "TRUNCATE TABLE types")
			batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO types")
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range typesRows() {
				if err := batch.AppendStruct(&r); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Send(); err != nil {
				t.Fatal(err)
			}
			compare(t, readTypes(t, conn), typesRows())
			var n uint64
			err = conn.QueryRow(t.Context(), "SELECT count() FROM no_such_table").Scan(&n)
			if clickhouse.Code(err) != 60 {
				t.Errorf("missing table: %v", err)
			}
			// A failure after hundreds of blocks were sent.
			rows, err := conn.Query(t.Context(), "SELECT throwIf(number = 1000000) FROM numbers(2000000) SETTINGS max_block_size = 1000")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			got := 0
			for rows.Next() {
				got++
			}
			if clickhouse.Code(rows.Err()) != 395 || got == 0 {
				t.Errorf("a failure in mid-stream, after %d rows: %v", got, rows.Err())
			}
		})
	}
}
