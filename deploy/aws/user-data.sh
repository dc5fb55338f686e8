#!/usr/bin/env bash
# User data of an EC2 instance (Debian or Ubuntu) that becomes a Carrel node: mounts the EFS, installs, joins.
# Fill in the five values, or have your template do it. The join token is good once and for an hour (CreateJoinToken): a launch template
# for many instances fetches one for each from where your control plane is. Ask for metadata tokens (HttpTokens=required) and a hop limit of 1.
set -euo pipefail
efs=fs-0123456789abcdef0.efs.eu-central-1.amazonaws.com
control_plane=https://carrel.internal:7301
join_token=carrel-join…
release=s3://your-bucket/carrel.tar # this repository with a release build, as `git archive` and target/release make it
zone=$(curl -sf -H "X-aws-ec2-metadata-token: $(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)" \
  http://169.254.169.254/latest/meta-data/placement/availability-zone)

apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends nfs-common docker.io iptables awscli
# hard: a soft mount can corrupt files. noresvport: reconnects get through.
install -d -m 0755 /mnt/efs
grep -q " /mnt/efs " /etc/fstab ||
  echo "$efs:/ /mnt/efs nfs4 nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,_netdev 0 0" >>/etc/fstab
mountpoint -q /mnt/efs || mount /mnt/efs
install -d -m 0711 -o root -g root /mnt/efs/workspace-data

install -d /opt/carrel
aws s3 cp "$release" - | tar -x -C /opt/carrel
/opt/carrel/deploy/install node --binaries /opt/carrel/target/release --control-plane "$control_plane" \
  --base /mnt/efs/workspace-data --storage mount --zone "$zone" --join-token "$join_token"
