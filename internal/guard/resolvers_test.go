package guard

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseResolvConf(t *testing.T) {
	many := strings.Repeat("nameserver 192.0.2.1\n", maxResolvers)
	tests := map[string]struct {
		in      string
		want    []string
		wantErr string
	}{
		"empty":             {"", nil, ""},
		"one":               {"nameserver 192.0.2.53\n", []string{"192.0.2.53"}, ""},
		"no line end":       {"nameserver 192.0.2.53", []string{"192.0.2.53"}, ""},
		"both families":     {"nameserver 192.0.2.53\nnameserver\t2001:db8::53\n", []string{"192.0.2.53", "2001:db8::53"}, ""},
		"other lines":       {"search example.org\noptions edns0\nnameserver 192.0.2.53\n", []string{"192.0.2.53"}, ""},
		"comments":          {"# nameserver 192.0.2.1\n;nameserver 192.0.2.2\nnameserver 192.0.2.53 # ours\n", []string{"192.0.2.53"}, ""},
		"a zone":            {"nameserver fe80::53%eth0\n", []string{"fe80::53"}, ""},
		"IPv4-mapped":       {"nameserver ::ffff:192.0.2.53\n", []string{"192.0.2.53"}, ""},
		"Windows line ends": {"nameserver 192.0.2.53\r\n", []string{"192.0.2.53"}, ""},
		"no address":        {"nameserver\n", nil, ""},
		"a bad one between": {
			"nameserver 192.0.2.1\nnameserver x\nnameserver 192.0.2.2\n",
			[]string{"192.0.2.1", "192.0.2.2"},
			`2: nameserver "x": not an address`,
		},
		"too many": {many + "nameserver 192.0.2.2\n", strings.Fields(strings.Repeat("192.0.2.1 ", maxResolvers)), "65: more than 64 resolvers"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			servers, err := parseResolvConf(tt.in)
			var got []string
			for _, addr := range servers {
				got = append(got, addr.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("servers (-want +got):\n%s", diff)
			}
			if text := errorText(err); text != tt.wantErr {
				t.Errorf("error %q, want %q", text, tt.wantErr)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func FuzzParseResolvConf(f *testing.F) {
	for _, seed := range []string{"nameserver 192.0.2.53\n", "nameserver ::1%x\n#\n;", "nameserver nameserver\r\n", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		servers, _ := parseResolvConf(text)
		if len(servers) > maxResolvers {
			t.Fatalf("%d resolvers", len(servers))
		}
		var again strings.Builder
		for _, addr := range servers {
			again.WriteString("nameserver " + addr.String() + "\n")
		}
		reread, err := parseResolvConf(again.String())
		if diff := cmp.Diff(servers, reread, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
			t.Fatalf("%q read again: %v (-first +again):\n%s", text, err, diff)
		}
	})
}

// TestResolverFilesKeepWhatTheySaid changes a file step by step.
func TestResolverFilesKeepWhatTheySaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	files := newResolverFiles([]string{path, filepath.Join(t.TempDir(), "never")})
	steps := []struct {
		name    string
		change  func() error
		want    string
		wantErr string // part of it
	}{
		{"absent", func() error { return nil }, "", ""},
		{"first", write(path, "nameserver 192.0.2.53\n"), "192.0.2.53", ""},
		{"another of the same size", write(path, "nameserver 192.0.2.54\n"), "192.0.2.54", ""},
		{"a bad line", write(path, "nameserver x\nnameserver 192.0.2.55\n"), "192.0.2.54 192.0.2.55", "not an address"},
		{"too long", write(path, "nameserver 192.0.2.56\n"+strings.Repeat("#", maxResolvConf)), "192.0.2.54 192.0.2.55", "longer than"},
		{"removed", func() error { return os.Remove(path) }, "192.0.2.54 192.0.2.55", ""},
		{"a pipe that nobody fills", func() error { return syscall.Mkfifo(path, 0o600) }, "192.0.2.54 192.0.2.55", "not a regular file"},
		{"a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, "192.0.2.54 192.0.2.55", "not a regular file"},
		{"good again", func() error { return errors.Join(os.Remove(path), write(path, "nameserver 2001:db8::53\n")()) }, "2001:db8::53", ""},
		{"emptied", write(path, ""), "", ""},
	}
	for _, step := range steps {
		if err := step.change(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		entries, err := files.read()
		var got []string
		for _, e := range newSet(entries) {
			got = append(got, e.Prefix.Addr().String())
		}
		if text := strings.Join(got, " "); text != step.want {
			t.Errorf("%s: resolvers %s, want %s", step.name, text, step.want)
		}
		if text := errorText(err); (text == "") != (step.wantErr == "") || !strings.Contains(text, step.wantErr) {
			t.Errorf("%s: error %q, want %q", step.name, text, step.wantErr)
		}
		if err != nil && !strings.HasPrefix(err.Error(), path+":") {
			t.Errorf("%s: error %q does not name the file", step.name, err)
		}
	}
}

func write(path, text string) func() error {
	return func() error { return os.WriteFile(path, []byte(text), 0o600) }
}

// TestBrokenFilesStayBounded breaks a file again and again, each time with
// another resolver.
func TestBrokenFilesStayBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	files := newResolverFiles([]string{path})
	for i := range 2 * maxResolvers {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String()
		if err := write(path, "nameserver "+addr+"\nnameserver x\n")(); err != nil {
			t.Fatal(err)
		}
		entries, _ := files.read()
		if len(entries) > maxResolvers {
			t.Fatalf("%d resolvers", len(entries))
		}
		if _, ok := newSet(entries).overlapping(netip.MustParsePrefix(addr + "/32")); !ok {
			t.Fatalf("%s, which the file names now, is not among them", addr)
		}
	}
}
