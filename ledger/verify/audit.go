package verify

import "encoding/binary"

// The two logs of a tenant, as origins and packages name them.
const (
	ledgerLog = "ledger"
	auditLog  = "audit"
	auditName = "audit.tsx"
)

// kindAudit is the second byte of an audit event.
const kindAudit = 0x40

// Tags of audit events that the decoder looks at itself.
const (
	auditTenant = 1
	auditSeq    = 2
	auditAt     = 3
)

// auditFields are the forms of an audit event's fields, by tag.
var auditFields = [...]form{
	auditTenant: formText, auditSeq: formUint, auditAt: formTime, 4: formText, 5: formText, 6: formText, 7: formText,
	8: formText, 9: formText, 10: formText, 11: formText, 12: formUint, 13: formTime,
}

// decodeAudit reads the canonical bytes of an audit event.
func (c *content) decodeAudit(b []byte) error {
	*c = content{}
	if len(b) < 2 {
		return errForm
	}
	if b[0] != formatVersion || b[1] != kindAudit {
		return errVersion
	}
	rest, last := b[2:], -1
	for len(rest) > 0 {
		tag := int(rest[0])
		v, after, ok := take(rest[1:])
		if !ok || tag <= last || tag >= len(auditFields) || !auditFields[tag].fits(v) {
			return errForm
		}
		rest, last = after, tag
		switch tag {
		case auditTenant:
			c.tenant = v
		case auditSeq:
			c.seq = number(v)
		case auditAt:
			c.occurred = int64(binary.BigEndian.Uint64(v))
		}
	}
	return nil
}
