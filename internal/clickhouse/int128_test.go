package clickhouse_test

import (
	"math/big"

	"github.com/ClickHouse/ch-go/proto"
)

func new2pow128() *big.Int { return new(big.Int).Lsh(big.NewInt(1), 128) }

func int128FromBig(v *big.Int) proto.Int128 {
	low := new(big.Int).And(v, new(big.Int).SetUint64(1<<64-1)).Uint64()
	return proto.Int128{Low: low, High: new(big.Int).Rsh(v, 64).Uint64()}
}
