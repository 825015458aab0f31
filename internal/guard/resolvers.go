package guard

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
)

// defaultResolvConf are the files that name the host's resolvers. Where the
// first names a forwarder of our own, the others name those behind it.
var defaultResolvConf = []string{
	"/etc/resolv.conf",
	"/run/systemd/resolve/resolv.conf",
	"/run/NetworkManager/no-stub-resolv.conf",
}

const (
	maxResolvConf = 64 << 10 // bytes
	maxResolvers  = 64       // of one file; the C library asks three
)

// resolverFiles remember what each file said last.
type resolverFiles struct {
	paths   []string
	servers map[string][]netip.Addr // by path
}

func newResolverFiles(paths []string) *resolverFiles {
	if paths == nil {
		paths = defaultResolvConf
	}
	return &resolverFiles{paths: slices.Clone(paths), servers: make(map[string][]netip.Addr)}
}

// read reads all files. They are so small that to look whether they have
// changed would cost as much. What a missing or broken file said before stays,
// and is joined by what can be read of it; a missing one is no error.
func (r *resolverFiles) read() ([]Entry, error) {
	var entries []Entry
	var faults []error
	for _, path := range r.paths {
		servers, err := readResolvConf(path)
		if err != nil {
			servers = merge(servers, r.servers[path], maxResolvers)
		}
		r.servers[path] = servers
		for _, addr := range servers {
			entries = append(entries, Entry{hostPrefix(addr), whyResolver})
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	return entries, errors.Join(faults...)
}

// merge adds those of more that addrs has not, up to limit in all.
func merge(addrs, more []netip.Addr, limit int) []netip.Addr {
	for _, addr := range more {
		if len(addrs) < limit && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// readResolvConf returns the resolvers that a file names, also with an error.
func readResolvConf(path string) ([]netip.Addr, error) {
	// Without O_NONBLOCK a named pipe in its place would hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxResolvConf {
		return nil, fmt.Errorf("%s: longer than %d bytes", path, maxResolvConf)
	}
	servers, err := parseResolvConf(string(text))
	if err != nil {
		return servers, fmt.Errorf("%s:%w", path, err)
	}
	return servers, nil
}

// parseResolvConf returns the addresses of all nameserver lines, without their
// zones, also with an error: "2: nameserver \"x\": not an address".
func parseResolvConf(text string) ([]netip.Addr, error) {
	var servers []netip.Addr
	var fault error
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		line, _, _ = strings.Cut(line, ";")
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(words[1])
		switch {
		case err != nil:
			fault = fmt.Errorf("%d: nameserver %q: not an address", number, words[1])
		case len(servers) == maxResolvers:
			return servers, fmt.Errorf("%d: more than %d resolvers", number, maxResolvers)
		default:
			servers = append(servers, addr.WithZone("").Unmap())
		}
	}
	return servers, fault
}
