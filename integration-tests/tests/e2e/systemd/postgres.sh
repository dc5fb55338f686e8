# A Postgres as a cloud offers it: by TLS with a certificate of the provider's authority, and a password that a URL has to escape.
cd /etc/postgresql
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=the authority of the databases' -addext basicConstraints=critical,CA:true \
  -keyout ca.key -out ca.pem 2>&1
openssl req -newkey rsa:2048 -nodes -subj '/CN=db.example' -keyout db.key -out db.csr 2>&1
openssl x509 -req -in db.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile <(echo subjectAltName=DNS:db.example) -out db.pem 2>&1
main=$(echo /etc/postgresql/*/main)
install -o postgres -g postgres -m 600 db.key db.pem "$main"
printf '%s\n' 'ssl = on' "ssl_cert_file = '$main/db.pem'" "ssl_key_file = '$main/db.key'" "listen_addresses = '*'" >"$main/conf.d/tls.conf"
sed -i '1i hostssl carrel carrel 0.0.0.0/0 scram-sha-256' "$main/pg_hba.conf"
systemctl restart postgresql
cd /
runuser -u postgres -- psql -qc "CREATE ROLE carrel LOGIN PASSWORD 'p@ss/w%rd'" -c 'CREATE DATABASE carrel OWNER carrel'
install -D -m 644 /etc/postgresql/ca.pem /etc/carrel/rds.pem
