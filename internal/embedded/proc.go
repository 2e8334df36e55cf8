package embedded

import "bytes"

// isZombie reads the state in /proc/PID/stat, the field after the command name,
// which itself may contain spaces and parentheses.
func isZombie(stat []byte) bool {
	i := bytes.LastIndexByte(stat, ')')
	return i >= 0 && len(stat) > i+2 && stat[i+2] == 'Z'
}
