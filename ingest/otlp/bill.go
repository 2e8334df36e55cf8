package otlp

// billByMetrics is the value of the resource attribute tallystick.bill of a source
// that is billed by its token and cost metrics alone.
const billByMetrics = "metrics"

// billsCalls says whether the calls that a source reports one by one, by spans and log
// records, are billed. Of a source that is billed by its metrics they are not, or the
// same tokens would count twice.
func (b *batch) billsCalls(f *facts) bool {
	if f.bill == billByMetrics {
		b.warn("spans and log records are not counted of a source with tallystick.bill=metrics")
		return false
	}
	return true
}
