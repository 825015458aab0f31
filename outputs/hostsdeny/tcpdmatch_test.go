package hostsdeny

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// denied asks Debian's tcpdmatch whether the hosts.deny in dir keeps source out.
func denied(t *testing.T, dir, source string) bool {
	t.Helper()
	cmd := exec.Command("tcpdmatch", "-d", "sshd", source)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tcpdmatch: %v\n%s\nit is in Debian's package tcpd", err, out)
	}
	_, access, _ := strings.Cut(string(out), "access:")
	switch strings.TrimSpace(access) {
	case "denied":
		return true
	case "granted":
		return false
	}
	t.Fatalf("tcpdmatch says\n%s", out)
	return false
}

func newAccess(t *testing.T, text string) (dir string, f *File) {
	t.Helper()
	path := deny(t, text)
	write(t, filepath.Join(filepath.Dir(path), "hosts.allow"), "")
	return filepath.Dir(path), New(path, false)
}

func TestTCPWrappersKeepTheSourceOut(t *testing.T) {
	sources := map[string]struct{ out, in string }{
		"192.0.2.7":         {"192.0.2.7", "192.0.2.70"},
		"192.0.2.0/29":      {"192.0.2.7", "192.0.2.8"},
		"2001:db8::7":       {"2001:db8::7", "2001:db8::70"},
		"2001:db8:0:1::/64": {"2001:db8:0:1:f::1", "2001:db8:0:2::1"},
	}
	for _, template := range []string{"ALL: $TARGET$ : DENY", "ALL: $TARGET$", "sshd: [$TARGET$]"} {
		for source, want := range sources {
			t.Run(template+" "+source, func(t *testing.T) {
				dir, f := newAccess(t, "")
				line, err := Line(template, tokens(source))
				if err != nil {
					t.Fatal(err)
				}
				mustAdd(t, f, line)
				if !denied(t, dir, want.out) || denied(t, dir, want.in) {
					t.Errorf("%q: %s denied %v, %s denied %v", line,
						want.out, denied(t, dir, want.out), want.in, denied(t, dir, want.in))
				}
				mustRemove(t, f, line)
				if denied(t, dir, want.out) {
					t.Errorf("%s is denied after the line has gone", want.out)
				}
			})
		}
	}
}

// Whatever the file ends with, our line takes effect, and nobody else is kept
// out: not even where libwrap kept everybody out because of that end.
func TestTCPWrappersReadOurLine(t *testing.T) {
	for name, tt := range edits {
		t.Run(name, func(t *testing.T) {
			dir, f := newAccess(t, tt.text)
			mustAdd(t, f, rule)
			if !denied(t, dir, "192.0.2.7") || denied(t, dir, "198.51.100.1") {
				t.Errorf("after %q, ours denied %v, another denied %v", tt.text,
					denied(t, dir, "192.0.2.7"), denied(t, dir, "198.51.100.1"))
			}
		})
	}
}

// The limits are libwrap's, not ours.
func TestTCPWrappersLimits(t *testing.T) {
	longest := rule + strings.Repeat(" ", maxLine-len(rule))
	tests := map[string]struct {
		text string
		want bool // somebody else is kept out
	}{
		"longest line":      {longest + "\n", false},
		"longer line":       {longest + " \n", true},
		"no newline at end": {rule, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir, _ := newAccess(t, tt.text)
			if got := denied(t, dir, "198.51.100.1"); got != tt.want {
				t.Errorf("another source denied: %v, want %v", got, tt.want)
			}
		})
	}
	dir, f := newAccess(t, "")
	mustAdd(t, f, longest)
	if !denied(t, dir, "192.0.2.7") {
		t.Error("the longest line does not keep the source out")
	}
}
