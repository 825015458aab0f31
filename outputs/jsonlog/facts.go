package jsonlog

import "github.com/portsnare/portsnare/detector"

// facts are the values of the event fields that follow from what happened.
type facts struct {
	kind      string
	category  string // the members of a JSON array
	eventType string
	action    string
	outcome   string
	severity  string
	dataset   string
	message   string // except for probes
}

// The levels of event.severity that we use.
const (
	low    = "21"
	medium = "47"
)

func factsOf(ev *detector.Event) facts {
	if ev.IsProbe() {
		return probeFacts(ev)
	}
	f := facts{
		kind: "event", category: `"process"`, eventType: "info", action: "unknown",
		outcome: "success", severity: low, dataset: "portsnare.daemon",
	}
	switch ev.Action {
	case detector.PacketsLost:
		f.category, f.outcome, f.severity = `"network"`, "failure", medium
		f.action, f.message = "packets-lost", "packets or events lost: "
	case detector.ServiceReached:
		f.category, f.dataset = `"network"`, "portsnare.scan"
		f.action, f.message = "service-reached", "a packet was for a trap port that a service holds"
	case detector.AcceptFailed:
		f.category, f.dataset = `"network"`, "portsnare.scan"
		f.action, f.message = "accept-failed", "a peer vanished before a trap had accepted its connection"
	case detector.BanBegan:
		f.category, f.eventType, f.dataset = `"intrusion_detection","network"`, "denied", "portsnare.ban"
		f.action, f.message = "ban-began", "a source is banned"
	case detector.BanEnded:
		f.category, f.eventType, f.dataset = `"intrusion_detection","network"`, "allowed", "portsnare.ban"
		f.action, f.message = "ban-ended", "a source is no longer banned"
	case detector.DaemonStarted:
		f.eventType = "start"
		f.action, f.message = "daemon-started", "Portsnare is watching"
	case detector.DaemonStopped:
		f.eventType = "end"
		f.action, f.message = "daemon-stopped", "Portsnare has stopped"
	case detector.ConfigReloaded:
		f.category, f.eventType = `"configuration"`, "change"
		f.action, f.message = "config-reloaded", "a new configuration is in force"
	}
	return f
}

func probeFacts(ev *detector.Event) facts {
	f := facts{
		kind: "event", category: `"intrusion_detection","network"`, eventType: "info",
		action: "scan-detected", outcome: "unknown", severity: low, dataset: "portsnare.scan",
	}
	if ev.Action == detector.ScanIgnored {
		f.action, f.eventType = "scan-ignored", "allowed"
		return f
	}
	if ev.Triggered == detector.True {
		f.kind, f.severity = "alert", medium
	}
	switch {
	case ev.Blocked == detector.True:
		f.eventType, f.outcome = "denied", "success"
	case ev.NoBlock == detector.False: // a ban was asked for
		f.outcome = "failure"
	}
	return f
}
