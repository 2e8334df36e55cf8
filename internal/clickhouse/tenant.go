package clickhouse

import (
	"context"
	"fmt"
	"strings"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// TenantParam is the query parameter that every tenant's query must use, as
	// {tenant:String}.
	TenantParam = "tenant"
	// TenantColumn is the column of that value in every table with tenant data.
	TenantColumn = "tenant_id"

	tenantPlaceholder = "{" + TenantParam + ":String}"
)

// Scope is what a query made for one tenant may see.
type Scope struct {
	// Tenant is the tenant whose rows are visible.
	Tenant tenant.ID
	// Tables are all tables and views of the query that hold tenant data: by
	// their name alone in the connection's database, else as db.table. Each is
	// filtered by [TenantColumn] before the query sees it, under whatever name
	// or alias the query uses it. Table functions are not filtered.
	Tables []string
}

// QueryTenant runs a query that sees one tenant only. The SQL must use the
// parameter {tenant:String}; besides that a filter on each of the scope's tables
// holds back other tenants' rows even where the SQL forgets the parameter in one
// of its branches. Values go into params, never into the SQL.
//
// Errors: [ErrNoTenant], or what the server or the network says.
func (db *DB) QueryTenant(ctx context.Context, scope Scope, sql string, params map[string]string) (driver.Rows, error) {
	if len(scope.Tables) == 0 || scope.Tenant == "" || !strings.Contains(sql, tenantPlaceholder) {
		return nil, ErrNoTenant
	}
	bound := ch.Parameters{TenantParam: string(scope.Tenant)}
	for name, value := range params {
		if name == TenantParam {
			return nil, ErrNoTenant
		}
		bound[name] = value
	}
	rows, err := db.Query(ch.Context(ctx, ch.WithParameters(bound), ch.WithSettings(ch.Settings{
		"additional_table_filters": scope.filters(),
	})), sql)
	if err != nil {
		return nil, fmt.Errorf("clickhouse: query for one tenant: %w", err)
	}
	return rows, nil
}

// filters is the value of additional_table_filters, a map from table to
// condition in ClickHouse's literal syntax.
func (s Scope) filters() string {
	condition := TenantColumn + " = " + quoteString(string(s.Tenant))
	var b strings.Builder
	b.WriteByte('{')
	for i, table := range s.Tables {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quoteString(table) + ":" + quoteString(condition))
	}
	b.WriteByte('}')
	return b.String()
}

// quoteString is s as a ClickHouse string literal.
func quoteString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
