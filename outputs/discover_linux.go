package outputs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// ModulePlaces says where the programs of modules are.
type ModulePlaces struct {
	// Dirs are searched, in this order, for a file with the module's name. A
	// program runs with the daemon's user, so nobody but root and that user may
	// be able to change it, or one of the directories that lead to it.
	Dirs []string

	// Bundle is a program that holds the modules Bundled and is told by the name
	// that it is started with which to be. It is asked before Dirs are, so that
	// a build tree uses what was built with it; where it does not exist, Dirs
	// hold links to one. It stands beside the daemon's own program and is
	// trusted as that is: who can replace the one can replace the other.
	Bundle  string
	Bundled []string
}

// DefaultPlaces returns where modules are installed, an administrator's own
// before the distribution's, and the bundle beside the running program, which
// holds the modules of the given names.
func DefaultPlaces(bundled ...string) (ModulePlaces, error) {
	self, err := executablePath()
	if err != nil {
		return ModulePlaces{}, err
	}
	return ModulePlaces{
		Dirs:    []string{"/usr/local/lib/portsnare/outputs", "/usr/lib/portsnare/outputs"},
		Bundle:  filepath.Join(filepath.Dir(self), "portsnare-outputs"),
		Bundled: bundled,
	}, nil
}

// executablePath returns the path of the running program without symbolic links.
func executablePath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("where this program is: %w", err)
	}
	self, err = filepath.EvalSymlinks(self)
	if err != nil {
		return "", fmt.Errorf("where this program is: %w", err)
	}
	return self, nil
}

// moduleNames are what a module may be called: the name of one file.
var moduleNames = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// A program is the executable file of a module.
//
// It is started by a path without symbolic links, every part of which only
// trusted users can change. That closes the gap between check and start also for
// scripts, which their interpreters open by path; a descriptor would do so for
// binaries alone.
type program struct {
	path  string // without symbolic links
	name  string // what it is started as, its argv[0]
	found fs.FileInfo
}

// A trust says whose hands may be on a program.
type trust struct {
	owners []uint32
	loose  fs.FileMode // what of 022 is tolerated
	alone  bool        // the directories are of no interest
}

// find returns the program of the module called name, checked. Its bytes must
// have the SHA-256 sum, if that is not nil.
func (p ModulePlaces) find(name string, sum []byte) (*program, error) {
	if !moduleNames.MatchString(name) {
		return nil, fmt.Errorf("%q is no name of a module: use small letters, digits, _ and -", name)
	}
	if slices.Contains(p.Bundled, name) && exists(p.Bundle) {
		t, err := trustOfBundle()
		if err != nil {
			return nil, err
		}
		return openProgram(p.Bundle, name, t, sum)
	}
	t := trust{owners: []uint32{0, uint32(os.Geteuid())}}
	for _, dir := range p.Dirs {
		if path := filepath.Join(dir, name); exists(path) {
			return openProgram(path, path, t, sum)
		}
	}
	return nil, fmt.Errorf("no file %s in %s: install the module there, or remove its block",
		name, strings.Join(p.Dirs, " or "))
}

// exists also takes for there what cannot be looked at: that is to be told.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// trustOfBundle trusts a program as much as the running one.
func trustOfBundle() (trust, error) {
	self, err := executablePath()
	if err != nil {
		return trust{}, err
	}
	info, err := os.Stat(self)
	if err != nil {
		return trust{}, err
	}
	return trust{
		owners: []uint32{0, uint32(os.Geteuid()), stat(info).Uid},
		loose:  info.Mode() & 0o022,
		alone:  true,
	}, nil
}

// openProgram checks the file that path leads to.
func openProgram(path, name string, t trust, sum []byte) (*program, error) {
	resolved, err := resolve(path)
	if err != nil {
		return nil, fmt.Errorf("follow %s to a program: %w", path, err)
	}
	if !t.alone {
		for _, dir := range []string{filepath.Dir(path), filepath.Dir(resolved)} {
			if err := t.checkDirs(dir); err != nil {
				return nil, err
			}
		}
	}
	// A pipe must not make the daemon wait.
	file, err := os.OpenFile(resolved, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a module's program: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at a module's program: %w", err)
	}
	if err := t.checkFile(resolved, info); err != nil {
		return nil, err
	}
	if err := checkSum(file, sum); err != nil {
		return nil, fmt.Errorf("%s: %w", resolved, err)
	}
	return &program{path: resolved, name: name, found: info}, nil
}

// resolve returns the absolute path without symbolic links.
func resolve(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

func (t trust) checkFile(path string, info fs.FileInfo) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", path)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable: chmod 755 %s", path, path)
	}
	return t.check(path, info)
}

// check refuses what others than the owners can change.
func (t trust) check(path string, info fs.FileInfo) error {
	if owner := stat(info).Uid; !slices.Contains(t.owners, owner) {
		return fmt.Errorf("%s belongs to user %d, who could change what runs: chown root %s", path, owner, path)
	}
	if info.Mode()&0o022&^t.loose != 0 {
		return fmt.Errorf("%s can be changed by more than its owner (mode %04o): chmod go-w %s",
			path, info.Mode().Perm(), path)
	}
	return nil
}

// checkDirs checks the directory that a program is in, and all above it.
func (t trust) checkDirs(dir string) error {
	dir, err := resolve(dir)
	if err != nil {
		return fmt.Errorf("directory of modules: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return fmt.Errorf("directory of modules: %w", err)
		}
		// In a sticky directory, as /tmp is, nobody can replace what is another's.
		above := t
		if at != dir && info.Mode()&fs.ModeSticky != 0 {
			above.loose = 0o022
		}
		if err := above.check(at, info); err != nil {
			return err
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// checkSum compares what r holds with the SHA-256 sum want; nil is any.
func checkSum(r io.Reader, want []byte) error {
	if want == nil {
		return nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, r); err != nil {
		return fmt.Errorf("read its bytes: %w", err)
	}
	if got := hash.Sum(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("its SHA-256 is %x, the configuration says %x: "+
			"if you replaced the module, change sha256 of its block", got, want)
	}
	return nil
}

// unchanged reports an error if the program is not the file that was checked, or
// was written to since.
func (p *program) unchanged() error {
	now, err := os.Lstat(p.path)
	if err != nil {
		return fmt.Errorf("look at a module's program again: %w", err)
	}
	was, is := stat(p.found), stat(now)
	// The time of the last change also tells of a file that was moved away and
	// back.
	if !os.SameFile(p.found, now) || was.Ctim != is.Ctim {
		return fmt.Errorf("%s was replaced while it was started", p.path)
	}
	return nil
}

func stat(info fs.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }
