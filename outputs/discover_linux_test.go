package outputs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// checksumOf returns the SHA-256 sum of the running program.
func checksumOf(t *testing.T) []byte {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(self)
	return sum[:]
}

// A tree is a directory of modules, DIR, and one beside it, ELSEWHERE.
type tree struct{ dir, elsewhere string }

func newTree(t *testing.T) tree {
	t.Helper()
	base := t.TempDir()
	tr := tree{filepath.Join(base, "dir"), filepath.Join(base, "elsewhere")}
	for _, dir := range []string{base, filepath.Dir(base), tr.dir, tr.elsewhere} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	return tr
}

func write(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func TestFindModule(t *testing.T) {
	sum := sha256.Sum256([]byte("#!/bin/true\n"))
	tests := map[string]struct {
		build func(t *testing.T, tr tree, path string)
		sum   []byte
		want  string // what the error says; DIR and ELSEWHERE are replaced
	}{
		"a program":              {build: func(t *testing.T, _ tree, path string) { write(t, path, 0o755) }},
		"a program with its sum": {build: func(t *testing.T, _ tree, path string) { write(t, path, 0o755) }, sum: sum[:]},
		"a program that is ours": {build: func(t *testing.T, _ tree, path string) { write(t, path, 0o700) }},
		"a link to a program": {build: func(t *testing.T, tr tree, path string) {
			write(t, filepath.Join(tr.elsewhere, "bundle"), 0o755)
			link(t, filepath.Join(tr.elsewhere, "bundle"), path)
		}},
		"nothing": {
			build: func(*testing.T, tree, string) {},
			want:  "no file slack in DIR or ELSEWHERE: install the module there, or remove its block",
		},
		"another sum": {
			build: func(t *testing.T, _ tree, path string) { write(t, path, 0o755) },
			sum:   make([]byte, 32), want: "DIR/slack: its SHA-256 is ",
		},
		"group can write": {
			build: func(t *testing.T, _ tree, path string) { write(t, path, 0o775) },
			want:  "DIR/slack can be changed by more than its owner (mode 0775): chmod go-w DIR/slack",
		},
		"everybody can write": {
			build: func(t *testing.T, _ tree, path string) { write(t, path, 0o757) },
			want:  "chmod go-w DIR/slack",
		},
		"not executable": {
			build: func(t *testing.T, _ tree, path string) { write(t, path, 0o644) },
			want:  "DIR/slack is not executable: chmod 755 DIR/slack",
		},
		"a directory": {
			build: func(t *testing.T, _ tree, path string) {
				if err := os.Mkdir(path, 0o755); err != nil {
					t.Fatal(err)
				}
			},
			want: "DIR/slack is no regular file",
		},
		"a pipe": {
			build: func(t *testing.T, _ tree, path string) {
				if err := syscall.Mkfifo(path, 0o755); err != nil {
					t.Fatal(err)
				}
			},
			want: "DIR/slack is no regular file",
		},
		"a link to nothing": {
			build: func(t *testing.T, _ tree, path string) { link(t, "/nonexistent", path) },
			want:  "follow DIR/slack to a program: ",
		},
		"directory that others can write to": {
			build: func(t *testing.T, tr tree, path string) { write(t, path, 0o755); chmod(t, tr.dir, 0o777) },
			want:  "DIR can be changed by more than its owner (mode 0777): chmod go-w DIR",
		},
		"sticky directory": {
			build: func(t *testing.T, tr tree, path string) {
				write(t, path, 0o755)
				chmod(t, tr.dir, 0o777|os.ModeSticky)
			},
			want: "DIR can be changed by more than its owner",
		},
		"directory above that others can write to": {
			build: func(t *testing.T, tr tree, path string) {
				write(t, path, 0o755)
				chmod(t, filepath.Dir(tr.dir), 0o777)
			},
			want: "can be changed by more than its owner",
		},
		"sticky directory above": {
			build: func(t *testing.T, tr tree, path string) {
				write(t, path, 0o755)
				chmod(t, filepath.Dir(tr.dir), 0o777|os.ModeSticky)
			},
		},
		"a link into a directory that others can write to": {
			build: func(t *testing.T, tr tree, path string) {
				write(t, filepath.Join(tr.elsewhere, "bundle"), 0o755)
				chmod(t, tr.elsewhere, 0o777)
				link(t, filepath.Join(tr.elsewhere, "bundle"), path)
			},
			want: "ELSEWHERE can be changed by more than its owner",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			path := filepath.Join(tr.dir, "slack")
			tt.build(t, tr, path)
			places := ModulePlaces{Dirs: []string{tr.dir, tr.elsewhere}, Bundle: "/nonexistent", Bundled: []string{"slack"}}
			p, err := places.find("slack", tt.sum)
			want := strings.NewReplacer("DIR", tr.dir, "ELSEWHERE", tr.elsewhere).Replace(tt.want)
			switch {
			case tt.want == "" && (err != nil || p.name != path):
				t.Errorf("find = %+v, %v", p, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("find: %v, want %q in it", err, want)
			}
		})
	}
}

// To somebody else, what is ours is a stranger's.
func TestFindModuleOfAStranger(t *testing.T) {
	tr := newTree(t)
	path := filepath.Join(tr.dir, "slack")
	write(t, path, 0o755)
	for name, tt := range map[string]struct {
		trust trust
		want  string
	}{
		"file":      {trust{owners: []uint32{4242}, alone: true}, path},
		"directory": {trust{owners: []uint32{4242}}, tr.dir},
	} {
		want := fmt.Sprintf("%s belongs to user %d, who could change what runs: chown root %[1]s", tt.want, os.Geteuid())
		if _, err := openProgram(path, path, tt.trust, nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}

// A bundle is as safe as the daemon that it stands beside.
func TestBundleIsTrustedAsTheDaemon(t *testing.T) {
	tr := newTree(t)
	path := filepath.Join(tr.dir, "bundle")
	write(t, path, 0o775)
	chmod(t, tr.dir, 0o775)
	for name, tt := range map[string]struct {
		loose os.FileMode
		ok    bool
	}{
		"daemon that the group can write": {0o020, true},
		"daemon that nobody can write":    {0, false},
	} {
		bundle := trust{owners: []uint32{uint32(os.Geteuid())}, loose: tt.loose, alone: true}
		if _, err := openProgram(path, "good", bundle, nil); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBundleComesFirst(t *testing.T) {
	tr := newTree(t)
	write(t, filepath.Join(tr.dir, "good"), 0o755)
	places := testPlaces(t)
	places.Dirs = []string{tr.dir}
	p, err := places.find("good", nil)
	if err != nil || p.path != places.Bundle || p.name != "good" {
		t.Errorf("find = %+v, %v; want %s", p, err, places.Bundle)
	}
}

func TestDefaultPlaces(t *testing.T) {
	places, err := DefaultPlaces("firewall")
	self, _ := os.Executable()
	if err != nil || places.Bundle != filepath.Join(filepath.Dir(self), "portsnare-outputs") || len(places.Dirs) != 2 {
		t.Errorf("DefaultPlaces = %+v, %v", places, err)
	}
}

func TestProgramReplaced(t *testing.T) {
	tests := map[string]func(t *testing.T, tr tree, path string){
		"by another": func(t *testing.T, tr tree, path string) {
			write(t, filepath.Join(tr.dir, "new"), 0o755)
			rename(t, filepath.Join(tr.dir, "new"), path)
		},
		"away and back": func(t *testing.T, _ tree, path string) {
			rename(t, path, path+"~")
			rename(t, path+"~", path)
		},
		"by new bytes": func(t *testing.T, _ tree, path string) {
			if err := os.WriteFile(path, []byte("#!/bin/trap\n"), 0); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, replace := range tests {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			path := filepath.Join(tr.dir, "slack")
			write(t, path, 0o755)
			p, err := ModulePlaces{Dirs: []string{tr.dir}}.find("slack", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.unchanged(); err != nil {
				t.Errorf("of a program that nobody touched: %v", err)
			}
			waitForClock(t, path)
			replace(t, tr, path)
			if err := p.unchanged(); err == nil {
				t.Error("nothing was noticed")
			}
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// waitForClock waits until the kernel's coarse clock, which stamps files, has
// moved on since the file at path was changed.
func waitForClock(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for probe := path + ".clock"; ; {
		write(t, probe, 0o600)
		later, err := os.Stat(probe)
		if err != nil {
			t.Fatal(err)
		}
		if stat(later).Ctim != stat(info).Ctim {
			return
		}
	}
}

func TestChecksum(t *testing.T) {
	sum := sha256.Sum256([]byte("abc"))
	if err := checkSum(bytes.NewReader([]byte("abc")), sum[:]); err != nil {
		t.Error(err)
	}
	if err := checkSum(bytes.NewReader([]byte("abd")), sum[:]); err == nil {
		t.Error("other bytes have the same sum")
	}
}
