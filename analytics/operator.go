package analytics

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/money"
)

// Operator reads what concerns the whole store: sums over all tenants that are
// compared with the ledger, and the figures of `tallystick status`. No request
// of a tenant may reach it.
type Operator struct {
	db *clickhouse.DB
}

// NewOperator makes an Operator on a connection of role clickhouse.Reader,
// which stays the caller's.
func NewOperator(db *clickhouse.DB) *Operator { return &Operator{db: db} }

// KindTotal is what the store has of one tenant, kind and reason of rejection.
type KindTotal struct {
	Tenant       string
	Kind         string // as chain.Kind's String
	RejectReason string // of kind rejected
	Entries      int64
	Unpriced     int64     // usage without a price; of corrections, what they change that by
	Cost         money.Sum // of what has a price
	// Conflicts is the number of different (event id, content) pairs among the
	// rejections by conflict.
	Conflicts int64
}

// Totals counts every entry of the store, ordered by tenant, kind and reason.
func (o *Operator) Totals(ctx context.Context) ([]KindTotal, error) {
	rows, err := o.db.Query(ctx, storeTotalsSQL)
	if err != nil {
		return nil, fmt.Errorf("read the store's totals: %w", err)
	}
	defer rows.Close()
	var all []KindTotal
	for rows.Next() {
		var t KindTotal
		var entries, conflicts uint64
		var cost string
		if err := rows.Scan(&t.Tenant, &t.Kind, &t.RejectReason, &entries, &t.Unpriced, &cost, &conflicts); err != nil {
			return nil, fmt.Errorf("read the store's totals: %w", err)
		}
		if t.Cost, err = money.ParseSum(cost); err != nil {
			return nil, fmt.Errorf("read the store's totals: %w", err)
		}
		t.Entries, t.Conflicts = int64(entries), int64(conflicts)
		all = append(all, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the store's totals: %w", err)
	}
	return all, nil
}

// Cost is the cost of all priced entries of all tenants, with the number of
// requests and how many of them have no price. It reads the sums by hour.
func (o *Operator) Cost(ctx context.Context) (cost money.Sum, requests, unpriced int64, err error) {
	var text string
	var n uint64
	if err := o.db.QueryRow(ctx, storeCostSQL).Scan(&text, &n, &unpriced); err != nil {
		return money.Sum{}, 0, 0, fmt.Errorf("read the store's cost: %w", err)
	}
	if cost, err = money.ParseSum(text); err != nil {
		return money.Sum{}, 0, 0, fmt.Errorf("read the store's cost: %w", err)
	}
	return cost, int64(n), unpriced, nil
}
