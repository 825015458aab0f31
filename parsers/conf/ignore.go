package conf

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// LoadIgnore reads the ignore files at paths into one set. Each line holds an
// address or a prefix in CIDR form, or nothing; what follows a # is a comment.
// An error is a [Faults] with every faulty line of every file.
func LoadIgnore(paths ...string) (detector.PrefixSet, []Warning, error) {
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
				fault.Upstream = "Unable to open ignore file: " + path
			}
			d.add(Place{File: path}, fault)
		}
		prefixes = append(prefixes, parseIgnore(d, string(text))...)
		warnings = append(warnings, d.warnings...)
		faults = append(faults, d.faults...)
	}
	if len(faults) > 0 {
		return detector.PrefixSet{}, warnings, faults
	}
	return detector.NewPrefixSet(prefixes...), warnings, nil
}

// parseIgnore returns the prefixes of an ignore file, host bits masked off.
func parseIgnore(d *diagnosis, text string) []netip.Prefix {
	var prefixes []netip.Prefix
	line := 0
	for entry := range strings.Lines(text) {
		line++
		entry, _, _ = strings.Cut(entry, "#")
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		place := Place{File: d.file, Line: line}
		prefix, fault := parseIgnoreEntry(entry)
		if fault != nil {
			d.add(place, *fault)
			continue
		}
		network := prefix.Masked()
		switch {
		case network.Bits() == 0:
			d.warn(place, "%s ignores every %s source", entry, family(network.Addr()))
		case network != prefix:
			d.warn(place, "%s is taken as the network %s", entry, network)
		}
		prefixes = append(prefixes, network)
	}
	return prefixes
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

func family(addr netip.Addr) string {
	if addr.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
