package conf

import (
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// parsePorts reads a list of ports and port ranges such as "1,7,512-515", in
// the grammar of PortSentry 2. Empty tokens are skipped, so that "" is the
// empty set. There is a fault for every bad token, up to maxFindings.
func parsePorts(s string) (detector.PortSet, Faults) {
	return parsePortTokens(s, parsePortToken)
}

// parsePortTokens reads a list of ports, parse each of its tokens.
func parsePortTokens(s string, parse func(token string) ([]detector.PortRange, *Fault)) (detector.PortSet, Faults) {
	var (
		ranges []detector.PortRange
		faults Faults
	)
	for token := range strings.SplitSeq(s, ",") {
		if token == "" {
			continue
		}
		found, fault := parse(token)
		ranges = append(ranges, found...)
		if fault != nil && len(faults) < maxFindings {
			faults = append(faults, *fault)
		}
	}
	return detector.NewPortSet(ranges...), faults
}

// maxPortToken is what PortSentry 2 has room for: two ports and the dash.
const maxPortToken = len("65535-65535")

// parsePortToken reads "N" or "A-B".
func parsePortToken(token string) ([]detector.PortRange, *Fault) {
	bad := func(problem, upstream string) ([]detector.PortRange, *Fault) {
		kind := "port "
		if strings.Contains(token, "-") {
			kind = "port range "
		}
		return nil, &Fault{Text: kind + strconv.Quote(token) + ": " + problem, Upstream: upstream}
	}
	first, last, isRange := strings.Cut(token, "-")
	// PortSentry counts the blank that follows a comma towards the length, so
	// that it takes "1, 7" and refuses "1, 54321". We take both.
	if len(withoutSign(token)) > maxPortToken {
		return bad("too long; separate ports by commas", "Invalid port range: "+token)
	}
	lo, problem := parsePort(first)
	if problem != "" {
		if isRange {
			return bad("start is "+problem, "Unable to extract port range start: "+token)
		}
		return bad(problem, "Unable to extract single port: "+token)
	}
	if !isRange {
		return []detector.PortRange{{First: lo, Last: lo}}, nil
	}
	hi, problem := parsePort(last)
	switch {
	case problem != "":
		return bad("end is "+problem, "Unable to extract port range end: "+token)
	case lo > hi:
		return bad("start is above end",
			"Invalid port range: "+token+", start port must be less than or equal to end port")
	}
	return []detector.PortRange{{First: lo, Last: hi}}, nil
}

// parsePort reads a port of at most five digits, which a blank or a plus may
// precede, or says what is wrong with it.
func parsePort(s string) (port uint16, problem string) {
	digits := withoutSign(s)
	if digits == "" {
		return 0, "missing"
	}
	n := 0
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, "not a number from 1 to 65535"
		}
		n = min(n*10+int(c-'0'), 1<<16)
	}
	if len(digits) > 5 || n == 0 || n >= 1<<16 {
		return 0, "outside 1 to 65535"
	}
	return uint16(n), ""
}

// withoutSign strips the one blank or plus that PortSentry lets precede a
// number.
func withoutSign(s string) string {
	if s != "" && (s[0] == ' ' || s[0] == '+') {
		return s[1:]
	}
	return s
}
