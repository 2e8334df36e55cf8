package checkpoint

import (
	"errors"
	"fmt"

	"github.com/tallystick/tallystick/internal/tenant"
)

// ErrMoved says that the newest checkpoint in the store is not the one that the
// next was built on: another process signs this tenant's log. Read anew.
var ErrMoved = errors.New("checkpoint: another process published in between")

// Why signing stops for a tenant. What verification would report has the reasons
// of ledger/verify; these are of the checkpoints themselves.
const (
	ReasonBelow    = "below checkpoint"      // the log is shorter than what is published
	ReasonForked   = "another root"          // the log has another root at a published size
	ReasonNote     = "checkpoint altered"    // a published note or its row is not what was signed
	ReasonTree     = "stored tree altered"   // tiles and root do not belong together
	ReasonHeadHash = "head hash"             // the head has another chain hash than its entry
	ReasonKeys     = "signing key statement" // a stated key is not ours
)

// Fault is why signing stopped for a tenant: something that was published and
// what is stored do not fit. It stays until the process starts again; nothing is
// signed for the tenant's log meanwhile.
type Fault struct {
	Log    string
	Tenant tenant.ID
	Seq    int64 // the first bad entry, or the size of the checkpoint
	Reason string
	Detail string
}

// Error says all of it.
func (f *Fault) Error() string {
	return fmt.Sprintf("%s of tenant %s: no checkpoint is signed any more: entry %d: %s: %s", f.Log, f.Tenant, f.Seq, f.Reason, f.Detail)
}
