package conf

import (
	"errors"
	"iter"
	"net/netip"
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// LoadIgnore reads the ignore files at paths into one set. Each line holds an
// address or a prefix in CIDR form, or nothing; what follows a # is a comment.
// An error is a [Faults] with every faulty line of every file.
func LoadIgnore(paths ...string) (detector.PrefixSet, []Warning, error) {
	return loadIgnore(paths, parseIgnore, func(path string) string {
		return "Unable to open ignore file: " + path
	})
}

// LoadPortSentry1Ignore is [LoadIgnore] as PortSentry 1.2 reads such files: text
// may follow the address, and a line that it cannot use is passed over, with a
// warning. An error is a [Faults] with the files that cannot be read; the set
// holds what the others say, because PortSentry 1.2 goes on without them.
func LoadPortSentry1Ignore(paths ...string) (detector.PrefixSet, []Warning, error) {
	return loadIgnore(paths, parsePortSentry1Ignore, func(string) string {
		return "attackalert: ERROR: cannot open ignore file. Blocking host anyway."
	})
}

// loadIgnore reads the files at paths; unreadable returns what the program whose
// files they are says about one that it cannot open.
func loadIgnore(
	paths []string, parse func(*diagnosis, string) []netip.Prefix, unreadable func(path string) string,
) (detector.PrefixSet, []Warning, error) {
	var (
		prefixes []netip.Prefix
		warnings []Warning
		faults   Faults
	)
	for _, path := range paths {
		d := newDiagnosis(path)
		text, err := readFile(path)
		if err != nil {
			fault := Fault{Text: err.Error(), Err: err}
			if !errors.Is(err, errTooLarge) {
				fault.Upstream = unreadable(path)
			}
			d.add(Place{File: path}, fault)
		}
		prefixes = append(prefixes, parse(d, string(text))...)
		warnings = append(warnings, d.warnings...)
		faults = append(faults, d.faults...)
	}
	set := detector.NewPrefixSet(prefixes...)
	if len(faults) > 0 {
		return set, warnings, faults
	}
	return set, warnings, nil
}

// parseIgnore returns the prefixes of an ignore file, host bits masked off.
func parseIgnore(d *diagnosis, text string) []netip.Prefix {
	var prefixes []netip.Prefix
	for place, entry := range d.lines(text) {
		entry, _, _ = strings.Cut(entry, "#")
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		prefix, fault := parseIgnoreEntry(entry)
		if fault != nil {
			d.add(place, *fault)
			continue
		}
		prefixes = append(prefixes, d.network(place, prefix))
	}
	return prefixes
}

// lines returns the lines of a text, without their ends.
func (d *diagnosis) lines(text string) iter.Seq2[Place, string] {
	return func(yield func(Place, string) bool) {
		n := 0
		for line := range strings.Lines(text) {
			n++
			if !yield(Place{File: d.file, Line: n}, strings.TrimRight(line, "\r\n")) {
				return
			}
		}
	}
}

// network returns the network of a prefix, and warns if that is not what the
// entry seems to mean.
func (d *diagnosis) network(place Place, prefix netip.Prefix) netip.Prefix {
	network := prefix.Masked()
	switch {
	case network.Bits() == 0:
		d.warn(place, "%s ignores every %s source", prefix, family(network.Addr()))
	case network != prefix:
		d.warn(place, "%s is taken as the network %s", prefix, network)
	}
	return network
}

// parseIgnoreEntry reads an address or a prefix. The faults carry the words
// of PortSentry 2.0.7, which refuses to start on them too.
func parseIgnoreEntry(entry string) (netip.Prefix, *Fault) {
	text, bits, isPrefix := strings.Cut(entry, "/")
	bad := func(problem, upstream string) (netip.Prefix, *Fault) {
		return netip.Prefix{}, &Fault{Text: strconv.Quote(entry) + ": " + problem, Upstream: upstream}
	}
	if strings.Trim(entry, "0123456789abcdefABCDEF.:/") != "" {
		return bad("not an address; names are not looked up", "Invalid character in ignore file: "+entry)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		const reason = "not an IPv4 or IPv6 address"
		return bad(reason, "Unable to read IP address "+text+": "+reason)
	}
	if !isPrefix {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	n, err := strconv.ParseUint(bits, 10, 16)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		return bad("give the prefix length as a number of bits, such as /24", "Invalid netmask in ignore file: "+entry)
	case err != nil || int(n) > addr.BitLen():
		limit := strconv.Itoa(addr.BitLen())
		return bad("prefix length above "+limit, "Invalid netmask in ignore file, must be 0-"+limit+": "+text)
	}
	return netip.PrefixFrom(addr, int(n)), nil
}

// parsePortSentry1Ignore returns the prefixes of an ignore file of PortSentry
// 1.2, host bits masked off. Unlike it, we take IPv6 too.
func parsePortSentry1Ignore(d *diagnosis, text string) []netip.Prefix {
	var prefixes []netip.Prefix
	for place, line := range d.lines(text) {
		entry := strings.TrimSpace(line)
		if entry == "" || entry[0] == '#' {
			continue
		}
		addr, rest, found := leadingAddress(entry)
		if !found {
			d.warn(place, "%q does not start with an address; the line is passed over", line)
			continue
		}
		bits := addr.BitLen()
		if mask, masked := strings.CutPrefix(rest, "/"); masked {
			if bits, found = prefixLength(mask, bits); !found {
				d.addWarning(place, Warning{
					Text:     strconv.Quote(line) + ": no prefix length from 0 to " + strconv.Itoa(addr.BitLen()) + "; the line is passed over",
					Upstream: "adminalert: Invalid netmask in config file: " + line + "  Ignoring entry.",
				})
				continue
			}
		}
		prefixes = append(prefixes, d.network(place, netip.PrefixFrom(addr, bits)))
	}
	return prefixes
}

// leadingAddress takes the address off the start of an entry. Letters that
// follow an IPv4 address are text, even if an IPv6 address could have them.
func leadingAddress(entry string) (addr netip.Addr, rest string, found bool) {
	for _, alphabet := range []string{"0123456789.", "0123456789abcdefABCDEF.:"} {
		rest = strings.TrimLeft(entry, alphabet)
		addr, err := netip.ParseAddr(entry[:len(entry)-len(rest)])
		if err == nil {
			return addr, rest, true
		}
	}
	return netip.Addr{}, "", false
}

// prefixLength reads the digits at the start of s, which text may follow.
func prefixLength(s string, highest int) (bits int, found bool) {
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	bits, err := strconv.Atoi(digits)
	return bits, err == nil && bits <= highest
}

func family(addr netip.Addr) string {
	if addr.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
