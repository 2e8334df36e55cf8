package embedded

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// unprivilegedUser runs Postgres when this process is root, which Postgres
// refuses to run as.
const unprivilegedUser = "nobody"

// engineUser is the account that an engine process runs as.
type engineUser struct {
	uid, gid uint32
	// switched is set when it is not the account of this process, which then is
	// root.
	switched bool
}

// nobodyLike stands for any account that is neither owner nor in the group of
// anything.
var nobodyLike = engineUser{uid: 1<<32 - 2, gid: 1<<32 - 2, switched: true}

// pickEngineUser decides who runs Postgres on dataDir. An ordinary user runs it
// as itself. For root it is the owner of an existing directory when that is an
// ordinary account, so that the same directory works with and without root;
// else it is nobody. Postgres refuses a uid without an entry in the password
// database, hence the look-ups.
func pickEngineUser(clusterDir string) (engineUser, error) {
	uid := os.Geteuid()
	if uid != 0 {
		if _, err := user.LookupId(strconv.Itoa(uid)); err != nil {
			return engineUser{}, fmt.Errorf("%w: Postgres refuses to run as uid %d because it has no entry in /etc/passwd; add one, or give a Postgres DSN in the configuration", ErrStart, uid)
		}
		return engineUser{uid: uint32(uid), gid: uint32(os.Getegid())}, checkOwner(clusterDir, uid)
	}
	if st, err := statOf(clusterDir); err == nil && st.Uid != 0 {
		if u, err := user.LookupId(strconv.Itoa(int(st.Uid))); err == nil {
			return switchTo(u)
		}
	}
	u, err := user.Lookup(unprivilegedUser)
	if err != nil {
		return engineUser{}, fmt.Errorf("%w: Postgres refuses to run as root and there is no user %q to run it as; start Tallystick as an ordinary user, or give a Postgres DSN in the configuration", ErrStart, unprivilegedUser)
	}
	return switchTo(u)
}

func switchTo(u *user.User) (engineUser, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return engineUser{}, fmt.Errorf("uid of %s: %w", u.Username, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return engineUser{}, fmt.Errorf("gid of %s: %w", u.Username, err)
	}
	return engineUser{uid: uint32(uid), gid: uint32(gid), switched: true}, nil
}

// checkOwner refuses an existing cluster directory of another user.
func checkOwner(clusterDir string, uid int) error {
	st, err := statOf(clusterDir)
	if err != nil {
		return nil // not there yet; creating it reports what is wrong
	}
	if int(st.Uid) != uid {
		return fmt.Errorf("%w: %s belongs to uid %d and this process is uid %d; run as that user, give the directory to this one (chown -R), or choose another", ErrDataDirOwner, clusterDir, st.Uid, uid)
	}
	return nil
}

func statOf(path string) (*syscall.Stat_t, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// credential returns what to set on a command that runs as u.
func (u engineUser) credential() *syscall.Credential {
	if !u.switched {
		return nil
	}
	// Groups is empty on purpose: root's supplementary groups are dropped.
	return &syscall.Credential{Uid: u.uid, Gid: u.gid}
}

// own gives path to u when u is not this process.
func (u engineUser) own(path string) error {
	if !u.switched {
		return nil
	}
	return os.Lchown(path, int(u.uid), int(u.gid))
}

// ownTree gives everything below root to u.
func (u engineUser) ownTree(root string) error {
	if !u.switched {
		return nil
	}
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return u.own(path)
	})
}

// reachable reports whether u may enter every folder on the way to path and
// read path itself.
func reachable(path string, u engineUser) error {
	if !u.switched {
		return nil
	}
	const enter, read = 1, 4
	need := uint32(enter | read)
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		st, err := statOf(dir)
		if err != nil {
			return err
		}
		if !allows(st, u, need) {
			return fmt.Errorf("uid %d cannot enter %s", u.uid, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
		need = enter
	}
}

// allows applies the classic owner, group, other rule.
func allows(st *syscall.Stat_t, u engineUser, need uint32) bool {
	mode := uint32(st.Mode)
	switch {
	case st.Uid == u.uid:
		mode >>= 6
	case st.Gid == u.gid:
		mode >>= 3
	}
	return mode&need == need
}
